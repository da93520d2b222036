"""Requirement files of pip and of conda become what uv installs."""

from __future__ import annotations

import pytest

from noronha.builder import requirements
from noronha.builder.requirements import Requirements
from noronha.rpc.errors import FailedPrecondition


def read(files: dict[str, str], path: str = "requirements.txt") -> Requirements:
    def text(name: str) -> str:
        if name not in files:
            raise FailedPrecondition(f"{name} is not in the project", reason="BAD_REQUIREMENTS")
        return files[name]

    found = Requirements()
    requirements.add_file(found, path, text)
    return found


def test_lines_stay_as_they_are_without_comments_and_joined() -> None:
    found = read(
        {
            "requirements.txt": "# top\nnumpy>=1.24  # why\n\nscipy==1.11 \\\n  --hash=sha256:ab\nx @ git+https://h/r#egg=x\n"
        }
    )
    assert found.lines == ["numpy>=1.24", "scipy==1.11 --hash=sha256:ab", "x @ git+https://h/r#egg=x"]
    assert not found.local
    assert not found.notices


@pytest.mark.parametrize(
    "line",
    ["noronha-dataops", "noronha-dataops==1.6.8", "Noronha_DataOps[embedded]>=1", "noronha-dataops @ https://x/y.whl"],
)
def test_noronha_itself_is_left_out_with_a_notice(line: str) -> None:
    found = read({"requirements.txt": f"numpy\n{line}\n"})
    assert found.lines == ["numpy"]
    assert len(found.notices) == 1
    assert "requirements.txt line 2" in found.notices[0]


def test_a_package_of_a_longer_name_is_not_noronha() -> None:
    assert read({"requirements.txt": "noronha-dataops-extras\n"}).lines == ["noronha-dataops-extras"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("numpy=1.19", "numpy==1.19.*"),
        ("numpy = 1.19.2", "numpy==1.19.2.*"),
        ("numpy=1.19.2=py37_0", "numpy==1.19.2"),
        ("numpy=1.*", "numpy==1.*"),
        ("scikit-learn>=0.20", "scikit-learn>=0.20"),
        ("numpy==1.19", "numpy==1.19"),
    ],
)
def test_the_way_conda_writes_versions_is_understood(line: str, expected: str) -> None:
    assert read({"requirements.txt": line}).lines == [expected]


def test_the_interpreter_is_no_package() -> None:
    found = read({"requirements.txt": "python=3.7\npip\nnumpy"})
    assert found.lines == ["numpy"]
    assert len(found.notices) == 2


def test_included_files_and_constraints_are_followed() -> None:
    found = read(
        {
            "deep/requirements.txt": "-r more.txt\n--constraint=../pins.txt\nnumpy",
            "deep/more.txt": "scipy",
            "pins.txt": "numpy<3\n",
        },
        "deep/requirements.txt",
    )
    assert found.lines == ["scipy", "numpy"]
    assert found.constraints == ["numpy<3"]


def test_packages_of_the_project_are_installed_as_copies() -> None:
    found = read({"requirements.txt": "-e .\n./lib[fast]\n--editable=./other"})
    assert found.lines == [".", "./lib[fast]", "./other"]
    assert found.local
    assert len(found.notices) == 2


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"requirements.txt": "-r requirements.txt"}, "includes itself"),
        ({"requirements.txt": "-r https://h/x.txt"}, "not in the project"),
        ({"requirements.txt": "-r gone.txt"}, "gone.txt"),
        ({"requirements.txt": "../../etc"}, "outside"),
        ({"requirements.txt": "/etc/passwd"}, "outside"),
        ({"requirements.txt": "-e ../x"}, "outside"),
        ({"requirements.txt": "-r ../../etc/passwd"}, "not in the project"),
    ],
)
def test_files_outside_of_the_project_are_refused(files: dict[str, str], word: str) -> None:
    with pytest.raises(FailedPrecondition, match=word) as caught:
        read(files)
    assert caught.value.reason == "BAD_REQUIREMENTS"
