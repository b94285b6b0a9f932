"""The site is complete, as far as can be seen without building it: `make docs` sees the rest."""

import ast
import inspect
import pathlib
import re
import textwrap

import pytest

import pescador

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
MAKEFILE = ROOT / "Makefile"
GENERATED = ("_build", "gallery")
PAGES = sorted(
    path for path in DOCS.rglob("*.rst") if path.relative_to(DOCS).parts[0] not in GENERATED
)
WITH_CODE = [*PAGES, ROOT / "README.md", *sorted((ROOT / "pescador").rglob("*.py"))]
NAMES = [path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES]
MODULES = (
    pescador.core,
    pescador.mux,
    pescador.maps,
    pescador.sources,
    pescador.zmq_stream,
    pescador.util,
)


def public():
    """Every public class and function, once, by the name that people use."""
    found = {}
    for module in (pescador, *MODULES, pescador.exceptions):
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        for name in names:
            value = getattr(module, name)
            is_ours = str(getattr(value, "__module__", "")).startswith("pescador.")
            if is_ours and (inspect.isclass(value) or inspect.isfunction(value)):
                found.setdefault(value, name)
    return {name: value for value, name in found.items()}


def takes_arguments(value):
    """Whether it has parameters of its own to document."""
    return not inspect.isclass(value) or inspect.isfunction(value.__init__)


def test_every_public_name_is_in_the_reference():
    reference = "".join(path.read_text() for path in (DOCS / "api").glob("*.rst"))
    documented = set(re.findall(r"^\.\. auto\w+:: (?:\w+\.)*(\w+)$", reference, re.M))
    assert documented >= public().keys()
    assert "StochasticMux" in public()
    assert "zmq_send_data" in documented


def documented_parameters(text):
    """The names in the Parameters section of a numpydoc docstring."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", text, re.M | re.S)
    if section is None:
        return set()
    heads = re.findall(r"^(\S.*?)(?: : .*)?$", section[1], re.M)
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


@pytest.mark.parametrize("name", sorted(n for n, it in public().items() if takes_arguments(it)))
def test_every_parameter_is_documented(name):
    value = public()[name]
    parameters = set(inspect.signature(value).parameters)
    assert documented_parameters(inspect.getdoc(value)) == parameters


def test_every_page_can_be_reached_from_the_first():
    reached, ahead = set(), ["index"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        text = (DOCS / f"{page}.rst").read_text()
        for tree in re.findall(r"^\.\. toctree::\n((?:[ ]{3}.*\n|\n)*)", text, re.M):
            for entry in re.findall(r"^[ ]{3}(?:.* <)?([\w/-]+)>?$", tree, re.M):
                child = (pathlib.PurePosixPath(page).parent / entry).as_posix()
                # The table of a benchmark is the one page in Markdown, and leads nowhere.
                leaf = child.split("/")[0] in GENERATED or (DOCS / f"{child}.md").is_file()
                if not leaf and child not in reached:
                    ahead.append(child)
    assert reached == set(NAMES)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_no_python_on_a_page_goes_unexecuted(path):
    text = path.read_text()
    languages = re.findall(r"^ *\.\. (?:code-block|code|sourcecode|highlight):: *(\S*)", text, re.M)
    assert set(languages) <= {"console", "text"}
    # A literal block that follows "::" is not executed either.
    assert not re.search(r"^(?!\s*\.\.).*::$", text, re.M)
    assert "+SKIP" not in text


def texts(path):
    """A page, or the docstrings of a module."""
    text = path.read_text()
    if path.suffix != ".py":
        return [text]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    return [ast.get_docstring(node) or "" for node in nodes]


def blocks(text):
    """The code blocks of a text: doctests, code, fences."""
    for indent, block in re.findall(r"^( *)(>>> .*\n(?:\1.*\S.*\n?)*)", text, re.M):
        yield block.replace("\n" + indent, "\n")
    for block in re.findall(r"^\.\. code-block::.*\n((?:[ ]{3}.*\n|\n)*)", text, re.M):
        yield textwrap.dedent(block)
    yield from re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)


# As much as stands beside the sidebars of a window of 1300 pixels.
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_line_of_a_code_block_is_longer_than_72_characters(path):
    lines = [line for text in texts(path) for each in blocks(text) for line in each.split("\n")]
    assert [line for line in lines if len(line) > 72] == []


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_picture_can_be_heard(path):
    text = path.read_text()
    for directive in re.findall(r"^\.\. (?:plot|image|figure)::.*\n((?:[ ]{3}.*\n)*)", text, re.M):
        assert ":alt: " in directive
    for name in re.findall(r":file: (\S+\.svg)", text):
        picture = (path.parent / name).read_text()
        assert re.search(r"<title\b.*</title>\s*<desc\b.*</desc>", picture)
        assert 'role="img"' in picture


INSIDE = DOCS / "inside"
PACKAGE = ROOT / "pescador"


def rooms():
    """The files of the package that the list of rooms is of, by their paths in it."""
    paths = [path for pattern in ("*.py", "*.pyx") for path in PACKAGE.rglob(pattern)]
    return {path.relative_to(PACKAGE).as_posix(): path for path in paths}


def code_of(path):
    """A file without its comments and docstrings."""
    comments = r"/\*(?s:.*?)\*/|//.*" if path.suffix == ".h" else r'"""(?s:.*?)"""|#.*'
    return re.sub(comments, "", path.read_text())


def words_of(paths):
    """The identifiers in files, each with those of one file."""
    return {path: set(re.findall(r"[A-Za-z_]\w*", code_of(path))) for path in paths}


def test_what_the_pages_on_the_inside_name_is_in_the_code():
    sources = [
        path
        for path in (*PACKAGE.rglob("*"), *(ROOT / "tests").rglob("*.py"))
        if path.suffix in (".py", ".pyx", ".pxd", ".h")
    ]
    everywhere = set().union(*words_of(sources).values(), re.findall(r"\w+", MAKEFILE.read_text()))
    by_module = {}
    for path, words in words_of(sources).items():
        if path.suffix in (".py", ".pyx"):
            by_module.setdefault(path.stem, set()).update(words)
    missing = {}
    for page in INSIDE.glob("*.rst"):
        for name in re.findall(r"``([A-Za-z_][\w./]*)``", page.read_text()):
            if re.search(r"\.(pyx?|pxd|h|json)$|/", name):
                known = any((folder / name).exists() for folder in (ROOT, PACKAGE, ROOT / "tests"))
                known = known or list(PACKAGE.rglob(name))
            else:
                # Of a module, its name must be in that very module.
                module, _, rest = name.partition(".")
                words = by_module.get(module, everywhere) if rest else everywhere
                known = words.issuperset((rest or name).split("."))
            if not known:
                missing.setdefault(page.name, []).append(name)
    assert missing == {}


def test_a_compiled_room_names_the_page_on_it_and_the_page_names_the_room():
    named_in_code, named_on_pages = set(), set()
    pages = {path.name: path.read_text() for path in INSIDE.glob("*.rst")}
    for name, path in rooms().items():
        for page in re.findall(r"docs/inside/(\w+\.rst)", path.read_text()):
            named_in_code.add((name, page))
            if re.search(rf"``(?:\w+/)*{path.name}``", pages[page]):
                named_on_pages.add((name, page))
    assert named_in_code == named_on_pages
    assert {page for _, page in named_in_code} == pages.keys() - {"index.rst", "rooms.rst"}
    assert {n for n, _ in named_in_code} >= {n for n in rooms() if n.endswith(".pyx")}


def test_the_list_of_rooms_names_each_file_of_the_package_and_no_other():
    text = (INSIDE / "rooms.rst").read_text()
    listed, folder = [], ""
    for line in re.search(r"^   pescador/\n((?:     .*\n|\n)*)", text, re.M)[1].split("\n"):
        if not line.startswith(" " * 7):
            folder = "".join(re.findall(r"^ +(\w+/)", line))
        listed += [folder + name for name in re.findall(r"\b\w+\.(?:pyx?|h)\b", line)]
    names = {name for name in rooms() if not name.endswith("__init__.py")}
    headers = {f"_native/{path.name}" for path in PACKAGE.glob("_native/*.h")}
    assert sorted(listed) == sorted(names | headers)


def test_each_answer_to_where_something_is_names_a_file_that_has_it():
    text = (INSIDE / "rooms.rst").read_text()
    answers = re.findall(r"^   \* - .*\?\n     - ``(.*)``: ``(.*)``$", text, re.M)
    assert len(answers) == 10
    for name, function in answers:
        assert re.search(rf"\b(?:def|cdef|cpdef)\b.*\b{function}\(", code_of(PACKAGE / name)), name


def test_the_list_of_tests_names_each_file_of_tests_once():
    listed = re.findall(r"``((?:\w+/)?test_\w+\.py)``", (INSIDE / "rooms.rst").read_text())
    files = (ROOT / "tests").rglob("test_*.py")
    assert sorted(listed) == sorted(path.relative_to(ROOT / "tests").as_posix() for path in files)


def test_contributing_names_each_folder_and_no_other():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"^(\w+)/ ", re.search(r"```\n(.*?)```", text, re.S)[1], re.M)
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
    assert set(listed) == folders - made


def test_the_changelog_begins_with_the_version_of_the_package():
    sections = re.findall(r"^## (\S+) \(.+\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert sections[0] == pescador.__version__
    assert len(set(sections)) == len(sections)


def test_the_table_of_differences_is_included_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    text = (DOCS / "coming_from_pescador.rst").read_text()
    start = re.search(r":start-after: (.*)", text)[1]
    end = re.search(r":end-before: (.*)", text)[1]
    table = readme.partition(start)[2].partition(end)[0].strip()
    assert table.startswith("| | pescador 3.0 | here |")
    assert all(line.startswith("|") for line in table.split("\n"))


def test_each_example_has_a_title_and_a_first_sentence():
    for path in (ROOT / "examples").glob("*.py"):
        title, underline, _, first = path.read_text().removeprefix('"""\n').split("\n")[:4]
        assert underline == "=" * len(title)
        assert first.endswith(".")
