"""Join the tables of the benchmarks into one, and draw all contests in one figure.

python benchmarks/draw.py FOLDER
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd
from side_by_side import KIT, LIMIT

matplotlib.use("agg")
PARTS = ("networks", "aggregators", "videos", "data path", "training")
COLOURS = {KIT: "#009e73", LIMIT: "#000000"}


def read(folder: Path) -> pd.DataFrame:
    """Read all tables of speeds, with the place that each was read from."""
    tables = [pd.read_csv(path, comment="#") for path in sorted(folder.glob("*.csv")) if path.stem != "all"]
    return pd.concat([table for table in tables if "contest" in table], ignore_index=True)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw each contest as a row and each contender as a point: its speed over the kit's."""
    from matplotlib import pyplot as plt

    table = table[table["kit / who"].notna()].assign(relative=lambda t: 1 / t["kit / who"])
    table["row"] = table["part"] + ": " + table["contest"]
    table = table[table.groupby("row")["who"].transform("nunique") > 1]
    rows = list(table.sort_values("part", key=lambda s: s.map(PARTS.index), kind="stable")["row"].unique())[::-1]
    figure, panel = plt.subplots(figsize=(12, 1.5 + 0.26 * len(rows)), layout="constrained")
    others = [who for who in table["who"].unique() if who not in COLOURS]
    palette = plt.get_cmap("tab20")
    for number, who in enumerate([KIT, LIMIT, *others]):
        found = table[table["who"] == who]
        colour, marker = COLOURS.get(who, palette(number % 20)), "s" if who == KIT else "|" if who == LIMIT else "o"
        panel.scatter(
            found["relative"], found["row"].map(rows.index), color=colour, marker=marker, s=45, label=who, zorder=3
        )
    panel.set_ylim(-0.7, len(rows) - 0.3)
    panel.axvline(1, color=COLOURS[KIT], linewidth=0.8)
    panel.set(
        xscale="log",
        yticks=range(len(rows)),
        yticklabels=rows,
        xlabel="speed over the kit's (left: slower); of networks and aggregators in GMAC/s, each by its own MACs",
    )
    panel.set_xticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    panel.minorticks_off()
    panel.tick_params(axis="y", labelsize=7)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    panel.set_title("The kit against peers and a matrix product")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Join and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    table = read(folder)
    table.to_csv(folder / "all.csv", index=False)
    draw(table, folder / "all.png")


if __name__ == "__main__":
    main()
