# SPDX-License-Identifier: Apache-2.0
"""The table, as it grows; the same as JSON; two of them side by side."""
import json
import statistics

from measure import Missing

UNITS = ((1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
WIDTHS = (46, 36, 60, 15, 14, 6)
HEAD = ("what", "vmfs: median (min..max) n", "the peer in the same run", "ratio", "target", "met")


def number(value):
    if value == int(value) and abs(value) >= 1000 or value == 0:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def quantity(value, unit):
    if unit != "s" or value == 0:
        return f"{number(value)} {unit}".rstrip()
    scale, name = next(((s, n) for s, n in UNITS if abs(value) >= s), UNITS[-1])
    return f"{number(value / scale)} {name}"


def spread(s, unit):
    if s["n"] == 1:
        return quantity(s["median"], unit)
    return (f"{quantity(s['median'], unit)} ({quantity(s['min'], unit)}.."
            f"{quantity(s['max'], unit)}) {s['n']}")


def line(words):
    return "  ".join(f"{w:<{n}}" for w, n in zip(words, WIDTHS)).rstrip()


def ratio_of(own, other):
    """Of those measured in turn the median of the rounds' own ratios: a load hits both alike."""
    if not own.median or not other.median:
        return None
    if len(own) == len(other):
        return statistics.median(a / b for a, b in zip(own, other))
    return own.median / other.median


class Report:
    def __init__(self, facts):
        self.facts, self.rows, self.section = facts, [], None

    def begin(self, section):
        self.section = section
        print(f"\n[{section}]\n{line(HEAD)}", flush=True)

    def add(self, what, own, peer=None, *, within=None, faster=None, limit=None, unit="s",
            note=None):
        """
        A row. peer is (name, Series or Missing). The target is one of: at most `within` times
        the peer, at least `faster` times faster than it, at most `limit` by itself.
        """
        name, other = peer or (None, None)
        row = {"section": self.section, "what": what, "unit": unit, "peer": name, "note": note,
               "ratio": None, "target": None, "met": None}
        for key, series in (("vmfs", own), ("other", other)):
            row[key] = " ".join(str(series).split()) if isinstance(series, Missing) else (
                series.summary() if series else None)
        if isinstance(row["vmfs"], dict) and isinstance(row["other"], dict):
            self._compare(row, ratio_of(own, other), within, faster)
        for sign, bound in (("<=", within), (">=", faster), ("<=", limit)):
            if bound is not None:
                row["target"] = f"{sign} {number(bound)}{'' if limit else ' x'}"
        if limit is not None:
            row["target"] = f"<= {quantity(limit, unit)}"
            if isinstance(row["vmfs"], dict):
                row["met"] = row["vmfs"]["median"] <= limit
        self.rows.append(row)
        print(self.text(row), flush=True)

    @staticmethod
    def _compare(row, ratio, within, faster):
        if not ratio:
            return
        if within is not None:
            row["ratio"] = ratio
            row["met"] = ratio <= within
        else:
            row["ratio"] = 1 / ratio
            row["met"] = None if faster is None else row["ratio"] >= faster

    @staticmethod
    def ratio(row):
        ratio, target = row["ratio"], row["target"] or ""
        if ratio is None:
            return "-"
        if target.startswith("<="):
            return f"{ratio:.3g} x"
        if row["unit"] == "s":
            return f"{number(ratio)} x faster" if ratio >= 1 else f"{1 / ratio:.3g} x slower"
        return f"{number(ratio)} x less" if ratio >= 1 else f"{1 / ratio:.3g} x more"

    def text(self, row):
        def cell(value):
            if isinstance(value, str):
                return f"not here: {value}"
            return spread(value, row["unit"]) if value else "-"

        peer = f"{row['peer']}: {cell(row['other'])}" if row["peer"] else "-"
        met = {True: "yes", False: "NO", None: "-"}[row["met"]]
        text = line((row["what"], cell(row["vmfs"]), peer, self.ratio(row), row["target"] or "-",
                     met))
        return f"{text}\n    {row['note']}" if row["note"] else text

    def finish(self, path):
        missed = [r for r in self.rows if r["met"] is False]
        absent = [r for r in self.rows if r["target"] and r["met"] is None]
        met = sum(r["met"] is True for r in self.rows)
        print(f"\ntargets: {met} met, {len(missed)} missed, {len(absent)} could not be judged")
        for r in missed + absent:
            word = "missed" if r["met"] is False else "not judged"
            print(f"  {word}: [{r['section']}] {r['what']}: {self.ratio(r)} "
                  f"(target {r['target']})")
        path.write_text(json.dumps({"facts": self.facts, "rows": self.rows}, indent=1) + "\n")
        print(f"written to {path}")


def compare(path_a, path_b):
    """Two runs side by side."""
    runs = []
    for path in (path_a, path_b):
        with open(path, encoding="utf-8") as f:
            runs.append(json.load(f))
    rows = [{(r["section"], r["what"], r["peer"]): r for r in run["rows"]} for run in runs]
    for name, run in zip("AB", runs):
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in run["facts"].items()))
    widths = (9, 46, 26, 12, 12, 8, 16, 16, 10)
    head = ("section", "what", "peer", "A", "B", "B / A", "ratio A", "ratio B", "met")

    def show(words):
        print("  ".join(f"{w:<{n}}" for w, n in zip(words, widths)).rstrip())

    show(head)
    both = [key for key in rows[0] if key in rows[1]]
    for key in both:
        pair = [side[key] for side in rows]
        own = [r["vmfs"] if isinstance(r["vmfs"], dict) else None for r in pair]
        cells = [quantity(o["median"], r["unit"]) if o else "-" for o, r in zip(own, pair)]
        change = "-"
        if all(own) and own[0]["median"]:
            change = f"{own[1]['median'] / own[0]['median']:.2f}"
        met = "/".join({True: "yes", False: "NO", None: "-"}[r["met"]] for r in pair)
        ratios = [Report.ratio(r) for r in pair]
        show((key[0], key[1], key[2] or "-", *cells, change, *ratios, met))
    for name, side in zip("AB", rows):
        if len(side) > len(both):
            print(f"rows only in {name}: {len(side) - len(both)}")
