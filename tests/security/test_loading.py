"""Nothing that is loaded can run: no pickle, no evaluated text, no unsafe YAML, no template outside the sandbox."""

import ast
from pathlib import Path

import pytest

import rlhf_marl

SOURCE = sorted(Path(rlhf_marl.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
CALLS = {"eval", "exec", "torch.load", "np.load", "numpy.load", "os.system", "pd.read_pickle", "jinja2.Template"}

PRIVATE = "tempfile.mkdtemp(prefix='rlhf-marl-')"  # Ray's sockets need a short path; its owner alone can enter it


def dangers(tree: ast.AST) -> list[str]:
    """What a source file imports or calls that could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            dangerous = (
                name in CALLS,
                options.get("shell") == "True",
                options.get("allow_pickle") == "True",
                name.startswith("tempfile.")  # would be in a folder of all users
                and "dir" not in options
                and ast.unparse(node) != PRIVATE,
                name == "yaml.load" and options.get("Loader") != "_Loader",
                name == "Environment" and not {"autoescape", "finalize"} & set(options),  # text goes out as it came in
            )
            if any(dangerous):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: path.relative_to(SOURCE[0].parent).as_posix())
def test_no_source_file_runs_what_it_reads(path):
    assert dangers(ast.parse(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(text, shell=True)",
        "Environment()",
        "tempfile.mkstemp()",
    ],
)
def test_the_search_finds_each_danger(line):
    assert dangers(ast.parse(line))
