"""What is shipped, and what a broken installation says."""

import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib

import pytest

import pescador

ROOT = pathlib.Path(__file__).parents[1]


def git_files():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return {name for name in listed if name and (ROOT / name).exists()}


def test_the_installed_version_is_that_of_the_package():
    assert importlib.metadata.version("pescador") == pescador.__version__
    assert pescador.version.version == pescador.__version__
    assert pescador.__version__.startswith("3.0.0+")


def test_it_is_built_for_the_oldest_numpy_that_it_runs_with():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = project["build-system"]["requires"] + project["project"]["dependencies"]
    oldest = {name for name in needed if name.startswith("numpy")}
    target = re.findall(
        r"NPY_TARGET_VERSION=NPY_(\d+)_(\d+)_API", (ROOT / "CMakeLists.txt").read_text()
    )
    assert oldest == {"numpy>={}.{}".format(*version) for version in target}


def test_an_sdist_holds_what_git_holds(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        shipped = {name.partition("/")[2] for name in tar.getnames()}
    assert shipped - {"PKG-INFO"} == {f for f in git_files() if not f.startswith(".ci/")}


def test_importing_the_package_uncompiled_says_what_to_do(tmp_path):
    package = tmp_path / "pescador"
    package.mkdir()
    for file in (ROOT / "pescador").glob("*.py"):
        shutil.copy(file, package)
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pescador"
    # -S: no site-packages, so no finder of an editable installation that would help.
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "pip install ." in done.stderr


def test_importing_the_package_in_a_subinterpreter_says_why_that_cannot_be():
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    script = f"""
        import {name} as interpreters
        import pescador
        code = '''try:
            import pescador
        except ImportError as error:
            print(error, flush=True)
        '''
        interpreters.run_string(interpreters.create(), code)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
    )
    assert "in the main interpreter only" in done.stdout, done
    assert "are missing" not in done.stdout


def test_the_package_ships_its_types():
    files = {pathlib.PurePath(file).name for file in git_files() if file.startswith("pescador/")}
    for module in files:
        if module.endswith(".pyx"):
            assert module.replace(".pyx", ".pyi") in files
    assert "py.typed" in files
