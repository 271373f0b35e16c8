"""Names of per-iteration files."""

from rlhf_marl.files.iterations import checkpoint_folders, iteration_name, iteration_paths, newest_checkpoint


def test_names_sort_by_number_and_others_are_ignored(tmp_path):
    assert iteration_name(7) == "iteration_00007"
    folder = tmp_path / "checkpoints"
    assert newest_checkpoint(tmp_path) is None
    for name in (
        "iteration_100000",
        "iteration_00007",
        "iteration_00007.tmp",
        "iteration_7",
        "copy of iteration_00008",
    ):
        (folder / name).mkdir(parents=True)
    (folder / "iteration_00009").touch()
    assert checkpoint_folders(folder) == [(7, folder / "iteration_00007"), (100000, folder / "iteration_100000")]
    assert newest_checkpoint(tmp_path) == folder / "iteration_100000"


def test_files_have_a_suffix(tmp_path):
    for name in ("iteration_00002.jsonl", "iteration_00001.jsonl", "iteration_00003.txt"):
        (tmp_path / name).touch()
    names = [(iteration, path.name) for iteration, path in iteration_paths(tmp_path, ".jsonl")]
    assert names == [(1, "iteration_00001.jsonl"), (2, "iteration_00002.jsonl")]
