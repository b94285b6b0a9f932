"""What is shipped, and what a broken installation says."""

import importlib.metadata
import os
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


def run_script(script):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_script_does_not_use_is_not_imported():
    run_script("""
        import sys
        import numpy as np
        import pescador

        def missing(*rooms):
            return not {*rooms} & {name.removeprefix("pescador.") for name in sys.modules}

        later = "parallel", "remote", "sharded", "sources", "zmq"
        streamer = pescador.Streamer([{"x": np.arange(3)}] * 4)
        mux = pescador.StochasticMux([streamer] * 3, 2, 2, random_state=0)
        batches = pescador.Streamer(pescador.buffer_stream, mux, 2)
        assert len(list(batches(max_iter=5))) == 5
        assert missing("zmq_stream", *later), sys.modules.keys()
        assert len(list(pescador.ZMQStreamer(batches)(max_iter=5))) == 5
        assert missing(*later), sys.modules.keys()
    """)


def test_each_public_name_is_found_whether_its_module_was_imported_or_not():
    rooms = "parallel", "remote", "sharded", "sources", "zmq_stream"
    run_script(f"""
        import pescador

        shown = dir(pescador)
        assert set(pescador.__all__) | set({rooms}) <= set(shown)
        assert not hasattr(pescador, "nothing")
        assert pescador.Sharded is pescador.sharded.Sharded
        names = dict()
        exec("from pescador import *", names)
        assert set(pescador.__all__) <= set(names)
        for name in (*pescador.__all__, *{rooms}):
            assert getattr(pescador, name) is names.get(name, vars(pescador)[name])
        assert set(shown) <= set(dir(pescador))
        assert pescador.batches is names["batches"] and callable(pescador.batches)
    """)


def test_a_name_that_somebody_has_set_stays_when_its_module_is_imported():
    run_script("""
        import pescador

        pescador.Server = "mine"
        assert callable(pescador.serve)
        assert pescador.Server == "mine"
    """)


@pytest.mark.parametrize("use", ["pescador.ZMQStreamer", "from pescador import ZMQStreamer"])
def test_a_module_that_fails_when_it_is_first_used_says_why(use):
    out = run_script(f"""
        import multiprocessing
        import pescador

        del multiprocessing.get_all_start_methods
        for _ in range(2):
            try:
                {use}
            except ImportError as error:
                print(error)
    """)
    assert out.count("get_all_start_methods") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker is to lack the rooms, too")
def test_workers_run_without_the_rooms_that_are_built_on_linux_alone():
    (built,) = re.findall(
        r"STREQUAL \"Linux\"\)\s+list\(APPEND rooms ([^)]+)\)",
        (ROOT / "CMakeLists.txt").read_text(),
    )
    rooms = ["pescador." + room.replace("/", ".") for room in built.split()]
    script = f"""
        import multiprocessing.popen_fork, sys
        import numpy as np, zmq

        sys.platform = "darwin"
        sys.modules.update(dict.fromkeys({rooms}))
        import pescador

        def stream(i):
            yield {{"x": np.arange(i)}}
            yield {{"x": np.ones(i)}}

        mux = pescador.RoundRobinMux([pescador.Streamer(stream, i) for i in range(3)], "exhaustive")
        given = []
        for background in (
            pescador.ZMQStreamer(mux, start_method="fork"),
            pescador.ParallelStreamer(pescador.Seeded(mux, 1), 2, start_method="fork"),
        ):
            given.append([item["x"].tolist() for item in background])
        assert given == [[item["x"].tolist() for item in mux]] * 2
    """
    run_script(script)


def test_the_package_ships_its_types():
    files = {pathlib.PurePath(file).name for file in git_files() if file.startswith("pescador/")}
    for module in files:
        if module.endswith(".pyx"):
            assert module.replace(".pyx", ".pyi") in files
    assert "py.typed" in files
