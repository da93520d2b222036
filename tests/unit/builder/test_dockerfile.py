"""Dockerfiles are read just enough: what is laid out, what is installed, what is left out in plain words."""

from __future__ import annotations

import pytest

from noronha.builder import dockerfile
from noronha.rpc.errors import FailedPrecondition

SIMPLE = """\
# default public base image for working inside Noronha
FROM noronhadataops/noronha:latest

# project dependencies installation
ADD requirements.txt .
RUN bash -c "source ${CONDA_HOME}/bin/activate ${CONDA_VENV} && conda install --file requirements.txt"

# deploying the project's code
ADD . ${APP_HOME}
"""

COMMON = """\
FROM noronhadataops/noronha:latest

ADD requirements.txt .
RUN bash -c "source ${CONDA_HOME}/bin/activate ${CONDA_VENV} \\
  && pip install -r requirements.txt \\
  && rm -f requirements.txt"

ADD . ${APP_HOME}
"""

FILES = ["Dockerfile", "notebooks/train.ipynb", "requirements.txt", "src/a.py", "src/deep/b.py"]


@pytest.mark.parametrize("text", [SIMPLE, COMMON])
def test_the_usual_dockerfiles_count_as_applied(text: str) -> None:
    plan = dockerfile.plan(text, FILES)
    assert plan.requirement_files == ["requirements.txt"]
    assert plan.notices == []
    assert plan.layout == {path: path for path in FILES}


@pytest.mark.parametrize(
    "base",
    ["noronhadataops/noronha", "noronhadataops/noronha:1.6", "registry.local:5000/noronhadataops/noronha@sha256:ab"],
)
def test_the_base_image_is_known_by_any_registry_and_tag(base: str) -> None:
    assert dockerfile.plan(f"FROM {base}\nADD . .", FILES).notices == []


def test_another_base_is_said_not_to_be_applied() -> None:
    (notice,) = dockerfile.plan("FROM python:3.7\nADD . /app", FILES).notices
    assert notice.startswith("Dockerfile line 1: FROM python:3.7 is not applied")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ADD notebooks ./notebooks", {"notebooks/train.ipynb": "notebooks/train.ipynb"}),
        ("ADD notebooks .", {"train.ipynb": "notebooks/train.ipynb"}),
        ("COPY src/ /app/code/", {"code/a.py": "src/a.py", "code/deep/b.py": "src/deep/b.py"}),
        ("COPY src/a.py code.py", {"code.py": "src/a.py"}),
        ("COPY src/a.py /app/", {"a.py": "src/a.py"}),
        ("COPY src/a.py /app", {"a.py": "src/a.py"}),
        ('COPY ["src/a.py", "requirements.txt", "/app/x/"]', {"x/a.py": "src/a.py", "x/requirements.txt": "requirements.txt"}),
        ("COPY --chown=1:1 src/*.py lib/", {"lib/a.py": "src/a.py"}),
        ("WORKDIR /app/inner\nCOPY src/a.py .\nWORKDIR /app", {"inner/a.py": "src/a.py"}),
        ("ARG place=/app/there\nCOPY src/a.py ${place}/a.py", {"there/a.py": "src/a.py"}),
    ],
)  # fmt: skip
def test_files_land_where_the_image_would_have_them(line: str, expected: dict[str, str]) -> None:
    plan = dockerfile.plan(f"FROM noronhadataops/noronha\n{line}", FILES)
    assert plan.layout == expected
    assert plan.notices == []


def test_a_later_file_covers_an_earlier_one() -> None:
    plan = dockerfile.plan("FROM noronhadataops/noronha\nADD . .\nCOPY src/a.py requirements.txt", FILES)
    assert plan.layout["requirements.txt"] == "src/a.py"


@pytest.mark.parametrize(
    "line",
    [
        "RUN apt-get update && apt-get install -y gcc",
        "RUN pip install -r requirements.txt && make",
        "ENV PATH=/x",
        "USER nobody",
        'CMD ["python"]',
        "COPY --from=builder /x /app/x",
        "ADD https://example.org/x.tar /app/x",
        "RUN conda env update -f environment.yml",
        "RUN <<EOF\napt-get update\nEOF",
        "FRON x",
        "RUN echo hi > /app/x",
        "RUN echo hi>>x && true",
        "RUN : >| x",
        "RUN echo a 2> errors.txt",
        "RUN bash -c 'echo hi > /app/x'",
        "RUN pip install -r requirements.txt > pip.log",
    ],
)
def test_what_is_not_applied_is_said_once_for_each_instruction(line: str) -> None:
    plan = dockerfile.plan(f"FROM noronhadataops/noronha\nADD . .\n{line}\n", FILES)
    assert len(plan.notices) == 1
    assert plan.notices[0].startswith("Dockerfile line 3: ")
    assert line.split()[0] in plan.notices[0]


def test_packages_named_in_the_dockerfile_are_installed() -> None:
    text = """\
FROM noronhadataops/noronha
RUN pip install --no-cache-dir 'numpy>=1.24' pandas[excel]==2.0 -i https://index.local/simple --upgrade pip
RUN python3 -m pip install ./src && conda install -y -c conda-forge joblib
ADD . .
"""
    plan = dockerfile.plan(text, FILES)
    assert [line for line, _ in plan.requirements] == [
        "numpy>=1.24", "pandas[excel]==2.0", "--index-url https://index.local/simple", "./src", "joblib",
    ]  # fmt: skip
    assert plan.notices == []


@pytest.mark.parametrize(
    "line", ["echo hi", "echo done >&2", "pip install joblib > /dev/null 2>&1", "pip install joblib 2>/dev/null; echo '<x>'"]
)
def test_output_that_goes_nowhere_is_no_file(line: str) -> None:
    plan = dockerfile.plan(f"FROM noronhadataops/noronha\nADD . .\nRUN {line}\n", FILES)
    assert plan.notices == []
    assert plan.requirements == ([("joblib", "Dockerfile line 3")] if "pip" in line else [])


def test_requirements_may_be_copied_anywhere_first() -> None:
    text = "FROM noronhadataops/noronha\nCOPY requirements.txt /tmp/req.txt\nRUN pip install -r/tmp/req.txt\nADD src /app/src\n"
    plan = dockerfile.plan(text, FILES)
    assert plan.requirement_files == ["requirements.txt"]
    assert set(plan.layout) == {"src/a.py", "src/deep/b.py"}
    assert plan.notices == []


def test_only_the_last_stage_counts() -> None:
    text = "FROM gcc AS first\nRUN make\nADD src /app\nFROM noronhadataops/noronha\nADD notebooks notebooks\n"
    plan = dockerfile.plan(text, FILES)
    assert set(plan.layout) == {"notebooks/train.ipynb"}
    assert plan.notices == []


@pytest.mark.parametrize(
    "line",
    [
        "ADD missing.txt .",
        "COPY ../outside .",
        "RUN pip install -r requirements.txt",
        "COPY src",
        'ADD "src .',
    ],
)
def test_what_an_image_build_would_refuse_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(FailedPrecondition, match="Dockerfile line 2") as caught:
        dockerfile.plan(f"FROM noronhadataops/noronha\n{line}\n", FILES)
    assert caught.value.reason == "DOCKERFILE_FAILED"


def test_nothing_leaves_the_project_folder() -> None:
    plan = dockerfile.plan("FROM noronhadataops/noronha\nCOPY src/a.py /app/../../etc/cron\nADD src ..\n", FILES)
    assert plan.layout == {}
    assert len(plan.notices) == 2


def test_the_notice_of_another_working_directory_names_its_own_line() -> None:
    plan = dockerfile.plan("FROM noronhadataops/noronha\nWORKDIR /srv\nLABEL a=b\n", FILES)
    assert plan.notices == ["Dockerfile line 2: tasks start in /app, not in /srv"]
