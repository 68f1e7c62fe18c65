"""What is printed of an error holds no control character, whoever wrote the names in it."""

from data_pipeline.errors import DataError, printable, shown


def test_control_characters_of_names_are_spelled_out_and_lines_stay_lines():
    assert printable("a\x1b]0;x\x07\u009b\n.jpg é") == r"a\x1b]0;x\x07\x9b\n.jpg é"
    said = shown(DataError("two faults:\n  a\x1b[31m.jpg\n  b\tc"))
    assert said == "two faults:\n  a\\x1b[31m.jpg\n  b\\tc"
