"""The program behind the README's table."""

from __future__ import annotations

import re

import pytest

from loraplex.bench.demo import main


@pytest.mark.slow
def test_the_table_has_a_row_for_each_number_of_streams(capsys: pytest.CaptureFixture[str]) -> None:
    main(rounds=1)
    out, err = capsys.readouterr()
    rows = re.findall(r"^\| (\d+) +\| +([\d.]+) \| +(\d+) \|$", out, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "4", "8"]
    assert all(float(first) > 0 and int(speed) > 0 for _, first, speed in rows)
    assert "lane batched" in out
    assert err == ""
