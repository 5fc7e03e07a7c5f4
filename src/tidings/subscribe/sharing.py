"""Who of the living workers reads which lanes: functions of values, the same for each of them. There is no leader.

Lanes are held in groups, of which a subscription has as many as its concurrency (64 at most), so that each worker runs just the part of
the concurrency that its groups stand for. Workers of different concurrency, as during a rolling deploy, go by the smallest number
of groups among them: else their groups would not begin at the same lanes, and between two of them one could be left that nobody may take.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..envelope import LANES


def group_of(lane: int, groups: int) -> int:
    """The group that a lane belongs to."""
    return lane * groups // LANES


def fair_share(me: str, workers: Sequence[str], groups: int) -> int:
    """How many groups ``me`` should hold. More workers than groups: those whose names come last hold none."""
    places = sorted(workers)[:groups]
    if me not in places:
        return 0
    return groups // len(places) + (places.index(me) < groups % len(places))


def able(read: Mapping[str, tuple[int, Collection[str]]]) -> set[str]:
    """Which of the living workers of a subscription may hold lanes of it: none that would pass by events that another one handles.

    During a deploy two versions of a subscription run side by side, and one of them may have handlers for more types. Where neither has
    all, the younger one's count.

    Args:
        read: when each worker was started, and the types that it has handlers for.
    """
    if not read:
        return set()
    everything = {one for _, types in read.values() for one in types}
    if not any(everything <= set(types) for _, types in read.values()):
        youngest = max(read, key=lambda worker: (read[worker][0], worker))
        everything = set(read[youngest][1])
    return {worker for worker, (_, types) in read.items() if everything <= set(types)}


def whole_groups(held: Collection[int], groups: int) -> set[int]:
    """Groups of which every lane is held."""
    return set(range(groups)) - {group_of(lane, groups) for lane in range(LANES) if lane not in held}


def to_give_back(me: str, held: Collection[int], others: Mapping[int, str], groups: int, share: int) -> set[int]:
    """The lanes of ``held`` that ``me`` should let go of.

    Args:
        others: lanes that other living workers hold, and who.

    First those of a group that somebody else holds a part of, unless ``me`` comes first by name: one of them must be able to have it whole.
    Then what is above the share, groups that aren't whole first.
    """
    rivals: dict[int, str] = {}
    for lane, worker in others.items():
        group = group_of(lane, groups)
        rivals[group] = min(worker, rivals.get(group, worker))
    lost = {group for group in {group_of(lane, groups) for lane in held} if rivals.get(group, me) < me}
    whole = whole_groups(held, groups)
    kept = sorted({group_of(lane, groups) for lane in held} - lost, key=lambda group: (group not in whole, group))
    let_go = lost | set(kept[share:])
    return {lane for lane in held if group_of(lane, groups) in let_go}
