"""The search of `flowrl tune`, with costs that are known."""

from __future__ import annotations

from flowrl.startup.doublings import Cost, DoesNotFitError, Tried, double, fastest

GIB = 2**30


class Machine:
    """Takes ``fixed`` seconds a call and ``each`` a row; ``grows`` bytes a row; ends at ``memory`` bytes."""

    def __init__(self, fixed: float, each: float, grows: int = 0, memory: int | None = None) -> None:
        self.fixed, self.each, self.grows, self.memory = fixed, each, grows, memory
        self.asked: list[int] = []

    def __call__(self, size: int) -> Cost:
        self.asked.append(size)
        if self.memory is not None and size * self.grows > self.memory:
            raise DoesNotFitError
        return Cost(self.fixed / size + self.each, size * self.grows)


def _best(tried: list[Tried]) -> int | None:
    found = fastest(tried)
    return None if found is None else found.size


def test_it_doubles_until_nothing_is_gained() -> None:
    machine = Machine(fixed=1.0, each=1.0)  # 2, 1.5, 1.25, 1.13, 1.06, 1.03 (2.9 % less), 1.016, 1.008, 1.004
    tried = double(machine, most=1000)
    assert machine.asked == [1, 2, 4, 8, 16, 32, 64, 128, 256] and _best(tried) == 64


def test_two_sizes_without_a_gain_end_it() -> None:
    seconds = {1: 4.0, 2: 2.0, 4: 3.0, 8: 1.95, 16: 0.1}
    tried = double(lambda size: Cost(seconds[size]), most=16)
    assert [each.size for each in tried] == [1, 2, 4, 8] and _best(tried) == 2


def test_one_disturbed_measurement_does_not() -> None:
    seconds = {1: 4.0, 2: 2.0, 4: 3.0, 8: 1.0}
    assert _best(double(lambda size: Cost(seconds[size]), most=8)) == 8


def test_the_most_is_tried_though_it_is_no_power_of_two() -> None:
    machine = Machine(fixed=1.0, each=0.0)
    assert _best(double(machine, most=12)) == 12 and machine.asked == [1, 2, 4, 8, 12]


def test_out_of_memory_leaves_the_largest_that_fits() -> None:
    machine = Machine(fixed=1.0, each=0.0, grows=GIB, memory=5 * GIB)
    tried = double(machine, most=1000)
    assert machine.asked == [1, 2, 4, 8] and _best(tried) == 4
    assert tried[-1] == Tried(8, None, "out of memory")


def test_what_would_not_fit_is_not_tried() -> None:
    machine = Machine(fixed=1.0, each=0.0, grows=GIB)
    tried = double(machine, most=1000, room=10 * GIB)
    assert machine.asked == [1, 2, 4, 8] and _best(tried) == 8
    assert tried[-1].cost is None and "16.0 GiB" in tried[-1].why


def test_nothing_fits() -> None:
    tried = double(Machine(1.0, 0.0, grows=GIB, memory=1), most=8)
    assert [each.size for each in tried] == [1] and fastest(tried) is None
