"""What is shown during a wait."""

from rlhf_marl.files.waiting import waiting


def test_one_inert_line_where_there_is_no_terminal(capsys):
    with waiting("converting \x1b[31m[bold]"):
        pass
    assert capsys.readouterr().err == "converting \\x1b[31m[bold]\n"
