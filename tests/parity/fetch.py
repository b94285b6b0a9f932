"""Put the releases that ours is compared with into a folder: ``fetch.py FOLDER``."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

HERE = pathlib.Path(__file__).parent


def main(folder):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-deps", "--upgrade", "--target"]
    subprocess.run([*install, folder / "3.0.0", "pescador==3.0.0"], check=True)
    subprocess.run([*install, folder / "lib", "decorator", "msgpack", "six"], check=True)
    # 2.0.0 has no wheel, and its setup.py imports a module that Python no longer has.
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            [
                *pip,
                "download",
                "--no-deps",
                "--no-build-isolation",
                "--no-binary",
                ":all:",
                "--dest",
                work,
                "pescador==2.0.0",
            ],
            check=True,
            env=os.environ | {"PYTHONPATH": str(HERE / "help")},
        )
        [archive] = pathlib.Path(work).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        source = pathlib.Path(work, "pescador-2.0.0", "pescador")
        shutil.copytree(source, folder / "2.0.0" / "pescador", dirs_exist_ok=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).absolute())
