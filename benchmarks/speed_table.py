"""Tables of results for the terminal."""

from collections.abc import Sequence

from speed_cases import Ceilings, Record, dtype_name

_COLUMNS = {
    "backend": 36,
    "dtype": 8,
    "median": 8,
    "20-80 %": 19,
    "ratio": 20,
    "/ floor": 7,
    "error": 7,
    "TFLOP/s": 8,
    "TB/s": 8,
    "items/s": 8,
}


def print_ceilings(ceilings: Ceilings) -> None:
    rates = ", ".join(
        f"{rate / 1e12:.3g} TFLOP/s in {dtype_name(dtype)}"
        for dtype, rate in ceilings.operations_a_second.items()
    )
    print(f"ceilings: copies {ceilings.bytes_a_second / 1e12:.3g} TB/s, products {rates}")


def print_records(records: Sequence[Record]) -> None:
    first = records[0]
    if all(one.median_us is None and one.error is None for one in records):
        print(f"\n{first.suite}: {first.case}")
        for one in records:
            peak = f"{one.peak_mib:.1f} MiB, {one.ratio_to_reference:.3f} of the first"
            print(f"  {one.backend}, {shape_text(one)}: {peak}")
        return
    print(f"\n{first.suite}: {first.case}, {shape_text(first)}".rstrip(", "))
    for cells in [tuple(_COLUMNS), *map(_cells, records)]:
        # Failed records have fewer cells, and the last may be long.
        line = " ".join(
            f"{cell:{width}}" for cell, width in zip(cells, _COLUMNS.values(), strict=False)
        )
        print(f"  {line}".rstrip())


def shape_text(record: Record) -> str:
    return ", ".join(f"{name} {value}" for name, value in record.shape.items())


def duration_text(microseconds: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} us"


def _cells(one: Record) -> Sequence[str]:
    name = one.backend + (" *" if one.reference == one.backend else "")
    if one.error is not None:
        return name, one.dtype, one.error
    ratio = ""
    if one.ratio_to_reference is not None:
        ratio = f"{one.ratio_to_reference:.3g} ({one.ratio_p20:.3g}-{one.ratio_p80:.3g})"
    return (
        name,
        one.dtype,
        duration_text(one.median_us or 0),
        f"{duration_text(one.p20_us or 0)}-{duration_text(one.p80_us or 0)}",
        ratio,
        _number(one.ratio_to_floor),
        _number(one.error_vs_float64, ".1e"),
        _number(one.achieved_tflops),
        _number(one.achieved_tbs),
        _number(one.items_per_second),
    )


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else f"{value:{form}}"
