"""What replicas answer, as it is told to people."""

from __future__ import annotations

import pytest

from noronha.runner.probes import Answer


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (404, '{"err": "no such path; there are /health, /predict"}', "no such path; there are /health, /predict"),
        (500, '{"err": {"Error": "ValueError", "Message": "bad\\nbytes", "cause": null}}', "bad bytes"),
        (500, '{"err": {"Error": "KeyError", "Message": "", "cause": null}}', "KeyError"),
        (500, '{"else": 1}', '{"else": 1}'),
        (502, "<html>\n  gone\n</html>", "<html> gone </html>"),
        (500, "[" * 100_000, "[" * 199 + "…"),
        (500, '{"err": "' + "x" * 300 + '"}', "x" * 199 + "…"),
        (503, "", "it answered 503"),
        (0, "did not answer within 60 s", "did not answer within 60 s"),
        (0, "", "no answer"),
    ],
)
def test_what_went_wrong_is_one_line(status: int, said: str, told: str) -> None:
    assert Answer(status, said).problem == told
