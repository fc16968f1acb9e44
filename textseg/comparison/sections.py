"""A leaderboard to read, before it has a format: sections of cells, what stands above them, and the notes below."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from textseg.comparison.leaderboard import (
    CASES,
    STRUCTURES,
    WINDOW_SHARE,
    WITHOUT_RARE,
    Leaderboard,
    Number,
    Row,
    Table,
    prompts_of,
)
from textseg.comparison.published import published_means, ranks
from textseg.comparison.significance import ALPHA, SCHEMES
from textseg.drawing.tables import format_interval, format_value, metric_title, window_table
from textseg.hookspecs import PublishedTable
from textseg.levels.level_naming import POLICY as NAMES_POLICY
from textseg.levels.obedience import POLICY as OBEDIENCE_POLICY
from textseg.metrics.aggregation import AGGREGATES, DEFINITIONS, Aggregate
from textseg.metrics.definitions import POLICY
from textseg.metrics.statistics import DRAWS, MINIMUM_PATIENTS, small_sample_warning
from textseg.metrics.window_scores import POLICY as WINDOW_POLICY
from textseg.recipe.schema import EvaluationSettings
from textseg.registry.kinds import SCORING
from textseg.runs.identity import component_changes
from textseg.system.messages import counted

MAIN: Aggregate = "as_published"  # what the first table shows; the second shows all
SHORT_ROWS = 15  # of each table in the short form, which has to fit a screen
# The unit and the decimals that each cost is shown with.
COSTS = {
    "parameters": (1e6, 2),
    "multiply_accumulates": (1e9, 2),
    "milliseconds_per_slice": (1, 1),
    "peak_memory_bytes": (2**20, 0),
}


@dataclass(frozen=True)
class Section:
    """A table of cells with a heading. `best` and `second` are the cells (row, column) that a ranking emphasises.

    `text_columns` hold text, which stands to the left; `parts` are the rows that begin a new part of the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    second: frozenset[tuple[int, int]] = frozenset()
    notes: Sequence[str] = ()
    text_columns: frozenset[int] = frozenset({0})
    parts: frozenset[int] = frozenset()


def short_section(board: Leaderboard, width: int) -> Section:
    """Return one table that fits `width` columns: rank, method, metrics, misses, prompts, size.

    The metrics are the first, the first distance, and those that a recipe without `metrics` does not have. The
    intervals of the distance go first where the width is small, then those of the first metric, then the size, then
    the last metrics.
    """
    first = _short_metrics(board)
    usual = [metric.name for metric in EvaluationSettings().metrics]
    own = [metric for metric in board.metrics if metric not in (*first, *usual)]
    for count in range(len(own), -1, -1):
        for intervals, sizes in ((2, True), (1, True), (0, True), (0, False)):
            section = _short_section(board, [*first, *own[:count]], intervals, sizes)
            columns = zip(section.header, *section.rows, strict=True)
            if sum(max(map(len, cells)) + 2 for cells in columns) - 2 <= width:
                return section
    return section


def _short_section(board: Leaderboard, metrics: Sequence[str], intervals: int, sizes: bool) -> Section:
    titles = [f"{title_of(board, m)}{' [95 %]' if n < intervals else ''}" for n, m in enumerate(metrics)]
    obedience = ["obedience"] * board.has_obedience
    header = ["rank", "method", *titles, *obedience, "missed", "prompts", *["M params"] * sizes]
    shared, shorten = _shared_repeat(board)
    rows: list[list[str]] = []
    parts = set()
    for table in board.tables:
        parts.add(len(rows))
        for row in table.rows[:SHORT_ROWS]:
            cells = [_rank(row), f"{shorten(row.label)} {table.badge}".rstrip()]
            cells += [_mean_cell(board, row, metric, interval=n < intervals) for n, metric in enumerate(metrics)]
            cells += [f"{row.obedience.value:.2f}" if row.obedience else "–"] * board.has_obedience
            cells += [str(row.number(metrics[0], MAIN).missed), prompts_of(row.finished)]
            rows.append([*cells, *[cost_cells(row)[0]] * sizes])
        rows += _remainder(len(table.rows), len(header))
    if board.published:
        parts.add(len(rows))
        for result in board.published[:SHORT_ROWS]:
            means = [with_unit(board, m, result.value(m), result.unit(m)) for m in metrics]
            size = "–" if result.parameters is None else f"{result.parameters / 1e6:.2f}"
            rows.append(
                ["–", f"{result.method} (published)", *means, *["–"] * len(obedience), "–", "–", *[size] * sizes]
            )
        rows += _remainder(len(board.published), len(header))
    best, second = _picked_cells(board, board.tables[0], metrics, rows=SHORT_ROWS)
    title = f"Leaderboard: {board.settings.get('dataset')}{f', {shared}' if shared else ''}"
    text = frozenset({1, header.index("prompts")})
    return Section(title, header, rows, best, second, text_columns=text, parts=frozenset(parts))


def _short_metrics(board: Leaderboard) -> list[str]:
    """Return the metric that ranks, and HD95 or else the first metric that leaves missed structures out."""
    first = board.metrics[0]
    undefined = [metric for metric in board.metrics[1:] if board.facts[metric].missed is None]
    return [first, *sorted(undefined, key=lambda metric: metric != "hd95")[:1]]


def _shared_repeat(board: Leaderboard) -> tuple[str, Callable[[str], str]]:
    """Return the seeds and folds that all rows share, and a function that leaves them out of a label."""
    repeats = {row.finished.description for table in board.tables for row in table.rows}
    shared = repeats.pop() if len(repeats) == 1 else ""
    if not shared:
        return "", str
    return shared, lambda label: label.replace(f" ({shared})", "", 1)


def _remainder(count: int, columns: int) -> list[list[str]]:
    """Return the row that says how many rows are not shown, if any."""
    return [["", f"... and {count - SHORT_ROWS} more", *[""] * (columns - 2)]] if count > SHORT_ROWS else []


def reading(board: Leaderboard) -> Iterator[str]:
    """Yield the lines below the short table: what is averaged and ranked, and how certain the order is."""
    first, *distance = _short_metrics(board)
    sizes = f"{counted(len(board.structures), 'structure')} and {counted(len(board.patients), 'test patient')}"
    title = title_of(board, first).partition(" (")[0]
    missed = board.facts[first].missed
    misses = "its worst value" if missed is None else f"{missed:g}"
    line = f"Means over {sizes}. Ranks are by {title}, where a missed structure counts as {misses}."
    if distance:
        distance_title = title_of(board, distance[0]).partition(" (")[0]
        line += f" {distance_title} leaves missed structures out: read it with `missed`."
    yield line
    yield " ".join(_certainty(board, first))
    yield from other_code(board)


def _certainty(board: Leaderboard, metric: str) -> Iterator[str]:
    table = board.tables[0]
    pairs = [d for d in table.differences.get(metric, ()) if table.rows[0].label in (d.first, d.second)]
    if pairs and not board.mismatches:
        differing = sum(d.adjusted < ALPHA for d in pairs)
        some = f"{differing} of the {len(pairs)} other methods {'differs' if differing == 1 else 'differ'}"
        which = {0: "No other method differs", len(pairs): "Every other method differs"}.get(differing, some)
        yield f"{which} significantly from the first (p < {ALPHA}, Holm)."
    if table.warnings:
        yield "Ranks depend on how misses are counted."
    if len(board.patients) < MINIMUM_PATIENTS:
        yield f"With fewer than {MINIMUM_PATIENTS} patients, intervals and tests are rough."


def sections(board: Leaderboard) -> Iterator[Section]:
    """Yield every table of the leaderboard, in order."""
    for table in board.tables:
        yield _main(board, table)
        yield from further_sections(board, table)
        yield _cost(table)
        if table.differences:
            yield _differences(board, table)
            yield _ranks(board, table)
    if board.published:
        yield published_section(board)


def further_sections(board: Leaderboard, table: Table) -> Iterator[Section]:
    """Yield the tables behind a mean: how misses count, over what is averaged, seeds and folds, names, windows."""
    yield _aggregates(board, table)
    yield _scopes(board, table)
    if any(len(row.finished.runs) > 1 for row in table.rows):
        yield _seeds_and_folds(board, table)
    if any(row.level_naming for row in table.rows):
        yield _names(table)
    if any(row.windows for row in table.rows):
        yield _windows(table)


def mark(board: Leaderboard) -> list[str]:
    """Return the lines above a forced table: the keys that differ. Empty for runs that may be compared."""
    if not board.mismatches:
        return []
    keys = ", ".join(dict.fromkeys(mismatch.key for mismatch in board.mismatches))
    return [f"NOT COMPARABLE: these runs differ in {keys}.", *(f"  {mismatch.line}" for mismatch in board.mismatches)]


def title_of(board: Leaderboard, metric: str) -> str:
    """Return the heading of a metric, with its unit."""
    return metric_title(metric, board.unit[metric])


def with_unit(board: Leaderboard, metric: str, value: float, unit: str) -> str:
    """Return a value, with its unit if the heading has another."""
    text = format_value(value, unit)
    return text if unit == board.unit[metric] or math.isnan(value) else f"{text} {unit}"


def picked(values: Sequence[str], *, lower: bool) -> tuple[list[int], list[int]]:
    """Return the indices of the best and the second best value, as printed: values that look equal are equal."""
    known = {index: float(text) for index, text in enumerate(values) if text != "–"}
    order = sorted(set(known.values()), reverse=not lower)
    best, second = ([index for index, value in known.items() if [value] == order[n : n + 1]] for n in (0, 1))
    return best, second if len(best) == 1 else []


def _main(board: Leaderboard, table: Table) -> Section:
    titles = [f"{title_of(board, m)} [95 %]" for m in board.metrics]
    rows = []
    for row in table.rows:
        first = row.number(board.metrics[0], MAIN)
        cells = [row.label, _rank(row), *(_mean_cell(board, row, m, interval=True) for m in board.metrics)]
        cells += map(format_interval, row.further(table))
        rows.append([*cells, str(first.missed), str(first.spurious), prompts_of(row.finished)])
    header = ["run", "rank", *titles, *further_titles(table), "missed", "spurious", "prompts"]
    best, second = _picked_cells(board, table, board.metrics, rows=len(rows))
    title = f"NOT COMPARABLE: {table.title}" if board.mismatches else table.title
    remarks = ["The brackets contain the 95 % interval of each mean (as_published)."]
    if table.has_obedience:
        remarks.append(OBEDIENCE_POLICY)
    return Section(title, header, rows, best, second, [*table.warnings, *remarks])


def further_titles(shown: Table | Leaderboard) -> list[str]:
    """Return the headings of `Row.further`."""
    title = f"DSC at {100 * WINDOW_SHARE:g} %"
    windows = [f"{title}, no person", f"{title}, right text (simulated)"] if shown.has_windows else []
    return [*windows, *["obedience"] * shown.has_obedience]


def _rank(row: Row) -> str:
    return "–" if row.rank is None else str(row.rank)


def _mean_cell(board: Leaderboard, row: Row, metric: str, *, interval: bool) -> str:
    number = row.number(metric, MAIN)
    value = with_unit(board, metric, number.value, number.unit)
    return f"{value} {interval_of(number)}" if interval else value


def picks(board: Leaderboard, table: Table, metric: str, aggregate: Aggregate = MAIN) -> tuple[list[int], list[int]]:
    """Return the rows with the best and the second best value; none where methods are not ranked with each other."""
    if not table.ranked or board.mismatches:
        return [], []
    values = [format_value(row.number(metric, aggregate).value, board.unit[metric]) for row in table.rows]
    return picked(values, lower=board.lower(metric))


def _picked_cells(
    board: Leaderboard, table: Table, metrics: Sequence[str], *, rows: int
) -> tuple[frozenset[tuple[int, int]], ...]:
    """Return the best and the second best cells of the first `rows`; metrics begin in the third column."""
    pairs = [picks(board, table, metric) for metric in metrics]
    return tuple(
        frozenset((row, column) for column, pair in enumerate(pairs, start=2) for row in pair[n] if row < rows)
        for n in (0, 1)
    )


def interval_of(number: Number) -> str:
    """Return an interval, with fewer digits than its mean."""
    digits = 1 if number.unit else 3
    return f"[{', '.join('–' if math.isnan(end) else f'{end:.{digits}f}' for end in (number.low, number.high))}]"


def cost_cells(row: Row) -> list[str]:
    """Return the costs of a method as text, in the order of COSTS."""
    values = [(row.cost[key], scale, digits) for key, (scale, digits) in COSTS.items()]
    return ["–" if value is None else f"{value / scale:.{digits}f}" for value, scale, digits in values]


def _aggregates(board: Leaderboard, table: Table) -> Section:
    titles = [f"{title_of(board, metric)}{' (rank)' if table.ranked else ''}" for metric in board.metrics]
    header = ["run", "counted", *(name for title in titles for name in (title, "n")), "missed", "spurious"]
    rows = []
    for row in table.rows:
        for aggregate in AGGREGATES:
            cells = [row.label, aggregate]
            for metric in board.metrics:
                number = row.number(metric, aggregate)
                rank = f" ({row.ranks[aggregate][metric]})" if table.ranked else ""
                cells += [f"{with_unit(board, metric, number.value, number.unit)}{rank}", str(number.used)]
            number = row.number(board.metrics[0], aggregate)
            rows.append([*cells, str(number.missed), str(number.spurious)])
    places = "; ".join(
        f"{title_of(board, metric)} {count} of {table.all_places}" for metric, count in table.common_places.items()
    )
    notes = [f"{aggregate}: {text}." for aggregate, text in DEFINITIONS.items()]
    notes += [f"Common to the runs of this table, of the structures in their cases: {places}. n: values in the mean."]
    return Section("Three ways to count a miss", header, rows, notes=notes)


def _scopes(board: Leaderboard, table: Table) -> Section:
    metric = board.metrics[0]
    rows = []
    for row in table.rows:
        cells = [row.label]
        for scope in board.scopes:
            number = row.number(metric, "penalised", scope)
            cells += [with_unit(board, metric, number.value, number.unit), f"{number.used}/{number.missed}"]
        rows.append(cells)
    header = ["run"]
    for name in board.scopes:
        header += [f"over {name}" if name in (STRUCTURES, CASES) else name.replace("_", " "), "n/missed"]
    rare = ", ".join(f"{name} ({shown} of {counted(cases, 'case')})" for name, (shown, cases) in board.rare.items())
    notes = [
        f"Rare, below {board.rare_share:.0%} of the test cases: {rare}."
        if rare
        else f"No structure is rare: each is shown in at least {board.rare_share:.0%} of the test cases."
    ]
    if rare and WITHOUT_RARE not in board.scopes:
        notes.append("All are rare, so none is left out.")
    if board.groups_missing:
        notes.append("The runs do not say the groups of their atlas: evaluate again for means by group.")
    return Section(f"{title_of(board, metric)}, penalised, by what is averaged", header, rows, notes=notes)


def _seeds_and_folds(board: Leaderboard, table: Table) -> Section:
    header = ["run", "runs", *(name for m in board.metrics for name in (title_of(board, m), "seed sd", "fold sd"))]
    rows = []
    for row in table.rows:
        cells = [row.label, str(len(row.finished.runs))]
        for number in (row.number(metric, MAIN) for metric in board.metrics):
            cells += [format_value(v, number.unit) for v in (number.value, number.seed_sd, number.fold_sd)]
        rows.append(cells)
    note = (
        "Each patient counts once, with the mean of its repeats; folds are put together. Standard deviations are "
        "between the means of seeds (each with all its folds), and between those of folds (with all their seeds)."
    )
    return Section("Seeds and folds", header, rows, notes=[note])


def _names(table: Table) -> Section:
    header = ["run", "level shifts", "misnamed", "order violations per case", "duplicates per case"]
    rows = []
    for row in table.rows:
        naming = row.level_naming
        if naming is None:
            rows.append([row.label, *["–"] * 6])
            continue
        shares = [naming["level_shift_rate"], naming["misnamed_rate"]]
        cells = ["–" if math.isnan(share) else f"{100 * share:.1f} %" for share in shares]
        cells += [f"{naming[f'{key}_per_case']:.2f}" for key in ("order_violations", "duplicates")]
        rows.append([row.label, *cells, *(format_value(naming[key]) for key in ("dsc", "dsc_without_names"))])
    return Section("Names", [*header, "DSC per case", "without names"], rows, notes=[NAMES_POLICY])


def _windows(table: Table) -> Section:
    rows, parts, header = list[list[str]](), set[int](), list[str]()
    for row in (row for row in table.rows if row.windows):
        header, cells = window_table(row.windows)
        parts.add(len(rows))
        rows += [[row.label, *line] for line in cells]
    return Section("Fields of view", ["run", *header], rows, notes=[WINDOW_POLICY], parts=frozenset(parts))


def _cost(table: Table) -> Section:
    header = ["run", "M parameters", "G multiply-accumulates", "ms per slice", "peak memory (MiB)"]
    return Section("Size and speed", header, [[row.label, *cost_cells(row)] for row in table.rows])


def _differences(board: Leaderboard, table: Table) -> Section:
    metric = board.metrics[0]
    rows = [
        [f"{d.first} - {d.second}", f"{d.mean:+.4f}", f"{d.test.effect:+.2f}", f"{d.test.p:.3g}", f"{d.adjusted:.3g}"]
        for d in table.differences[metric]
    ]
    note = (
        "Wilcoxon's signed-rank test on patients' means, penalised; p (Holm) is adjusted for the number of pairs. "
        "effect: matched-pairs rank-biserial correlation, 1 where the first is better in every patient."
    )
    header = ["pair", "mean", "effect", "p", "p (Holm)"]
    return Section(f"Differences in {title_of(board, metric)}", header, rows, notes=[note])


def _ranks(board: Leaderboard, table: Table) -> Section:
    metric = board.metrics[0]
    ranking = table.rankings[metric]
    rows = []
    for index, row in enumerate(table.rows):
        low, high = ranking.likely(index)
        cells = [f"{ranking.schemes[scheme][index]:g}" for scheme in SCHEMES]
        rows.append([row.label, *cells, f"{low} to {high}", f"{100 * ranking.distribution[index][0]:.0f} %"])
    taus = "; ".join(
        f"{first.replace('_', ' ')} and {second.replace('_', ' ')} {format_value(tau)}"
        for (first, second), tau in ranking.tau.items()
    )
    schemes = "; ".join(f"{scheme.replace('_', ' ')}: {text}" for scheme, text in SCHEMES.items())
    stable = (
        f"Kendall's tau between rankings: {taus}; between that by means and those of {DRAWS} draws of patients "
        f"{format_value(ranking.stability)} on average."
    )
    header = ["run", *(scheme.replace("_", " ") for scheme in SCHEMES), "95 % of draws", "first in"]
    return Section(f"Ranks by {title_of(board, metric)}, penalised", header, rows, notes=[f"{schemes}.", stable])


def published_section(board: Leaderboard) -> Section:
    """Return the published results, as printed."""
    header = ["method", *(title_of(board, m) for m in board.metrics), "found", "M parameters", "ms per slice"]
    rows = []
    for row in board.published:
        cells = [row.method, *(with_unit(board, m, row.value(m), row.unit(m)) for m in board.metrics)]
        structures = min(mean.structures for mean in row.means.values())
        costs = (row.parameters and row.parameters / 1e6, row.milliseconds_per_slice)
        rows.append([*cells, f"{structures}", *("–" if cost is None else f"{cost:.2f}" for cost in costs)])
    title = f"Published on {board.published[0].dataset}: another protocol, not ranked"
    return Section(title, header, rows, notes=list(dict.fromkeys(row.note for row in board.published)))


def recomputed_sections(table: PublishedTable) -> Iterator[Section]:
    """Yield a published table for each metric, computed again from its values by structure, and what that changes."""
    changes, every, wrong = [], 0, []
    for means in published_means(table):
        metric, every = means[0].metric, every + len(means)
        printed, common = ranks(means, "printed"), ranks(means, "common")
        structures = max(len(method.by_structure.get(metric, ())) for method in table.methods)
        rows = [
            [
                mean.method,
                f"{mean.printed:.2f} ({printed[mean.method]})",
                f"{mean.as_published:.2f}{'*' if mean.wrong else ''}",
                f"{mean.common:.2f} ({common[mean.method]})",
                f"{mean.without_rare:.2f}",
                f"{mean.structures}/{structures}",
            ]
            for mean in sorted(means, key=lambda mean: printed[mean.method])
        ]
        header = ["method", "printed", "as published", "common", "without rare", "found"]
        yield Section(f"{table.dataset}: {metric} [{means[0].unit}]", header, rows)
        wrong += [mean for mean in means if mean.wrong]
        changes += [
            [mean.method, metric, str(printed[mean.method]), str(common[mean.method])]
            for mean in means
            if printed[mean.method] != common[mean.method]
        ]
    yield Section(
        f"{every} means computed again: {len(wrong)} (*) are not the mean of the values printed beside them",
        ["method", "metric", "printed", "computed"],
        [[mean.method, mean.metric, f"{mean.printed:.2f}", f"{mean.as_published:.2f}"] for mean in wrong],
        text_columns=frozenset({0, 1}),
    )
    yield Section(
        "Ranks that change where only structures count that every method found",
        ["method", "metric", "printed", "common"],
        changes,
        notes=[f"Source: {table.source}. Protocol: {table.protocol}."],
        text_columns=frozenset({0, 1}),
    )


def notes(board: Leaderboard) -> list[str]:
    """Return the notes that hold for every table."""
    settings = board.settings
    patients = len(board.patients)
    means = (
        f"Means over the {counted(len(board.structures), 'structure')} that occur in the training data of every run; "
        f"{counted(patients, 'test patient')}, {counted(len(board.cases), 'case')}; scores per {settings.get('per')} "
        f"in {settings.get('space')} space; distances in {settings.get('unit')}."
    )
    intervals = f"Intervals: 95 %, bias-corrected and accelerated bootstrap of {DRAWS} draws over patients."
    return [
        means,
        POLICY,
        *own_metrics(board),
        *kernels(board),
        intervals,
        *filter(None, [small_sample_warning(patients)]),
        *other_code(board),
    ]


def kernels(board: Leaderboard) -> list[str]:
    """Return a note on the runs whose metrics medpy computed; they compare with other runs, since numbers are equal."""
    runs = [run for table in board.tables for row in table.rows for run in row.finished.runs]
    names = {str(run.value("metrics_kernel")) for run in runs}
    if not (by_medpy := sorted(name for name in names if name.startswith("medpy"))):
        return []
    others = ", in other runs by textseg, with equal numbers" if len(by_medpy) < len(names) else ""
    return [f"Metrics that medpy has are computed by {' and '.join(by_medpy)}{others}."]


def other_code(board: Leaderboard) -> list[str]:
    """Return a warning for each run that was trained with other code than the first run of its row."""
    warnings = []
    for row in (row for table in board.tables for row in table.rows):
        first, *others = row.finished.runs
        for run in others:
            components = (each.value("components") or {} for each in (first, run))
            if changes := "; ".join(component_changes(*components, but=SCORING)):
                warnings.append(f"Warning: {run.folder} was trained with other code than {first.folder}: {changes}.")
    return list(dict.fromkeys(warnings))


def own_metrics(board: Leaderboard) -> Iterator[str]:
    """Yield the definition of each metric that another distribution brings."""
    for metric, facts in board.facts.items():
        if facts.distribution not in ("", "textseg"):
            better = "higher" if facts.higher_is_better else "lower"
            miss = "left out of the mean" if facts.missed is None else f"{facts.missed:g}"
            yield (
                f"{metric_title(metric, facts.unit)}, of {facts.distribution} {facts.version}: "
                f"{facts.definition.rstrip('.')}. The {better}, the better; a missed or spurious structure is {miss}."
            )
