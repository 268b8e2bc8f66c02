"""The archive codec's decoder in plain Python, slow and with no thought of C: what docs/format.md describes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEADER = Path(__file__).parents[1] / "hvae_codec" / "archive" / "kernel" / "logistic.h"
KNOTS = [int(word) for word in re.findall(r"\d+", HEADER.read_text().partition("KNOTS[97] = {")[2].partition("}")[0])]


def probability(logit: int) -> int:
    knot, part = divmod(min(3071, max(-3071, logit)) + 3072, 64)
    return (KNOTS[knot] * (64 - part) + KNOTS[knot + 1] * part) // 64


PROBABILITIES = np.array([probability(logit) for logit in range(-3071, 3071)])
LOGITS = [int(np.searchsorted(PROBABILITIES, 16 * i + 8)) - 3071 for i in range(4096)]
RATES = [655360 // (10 * n + 16) for n in range(128)]


def limited(value: int, most: int) -> int:
    return min(most, max(-most, value))


def level(total: int) -> int:
    return next(number for number, most in enumerate((0, 1, 2, 4, 7, float("inf"))) if total <= most)


class Slot:
    """A probability of 22 bits that learns."""

    def __init__(self) -> None:
        self.p, self.seen = 2**21, 0

    def learn(self, bit: int) -> None:
        rate = RATES[self.seen]
        self.p += (4194303 - self.p) * rate // 65536 if bit else -(self.p * rate // 65536)
        self.seen = min(127, self.seen + 1)


class Decoder:
    """All numbers of a chunk's payload."""

    def __init__(self, data: bytes, bits: int) -> None:
        self.data, self.bits, self.position = data + bytes(64), bits, 4
        self.low, self.high, self.value = 0, 2**32 - 1, int.from_bytes(self.data[:4], "big")
        self.slots: dict[tuple[object, ...], Slot] = {}
        self.weights: dict[tuple[object, ...], list[int]] = {}

    def bit(self, p: int) -> int:
        p = min(65536 - 24, max(24, p))
        middle = self.low + (self.high - self.low) * p // 65536
        bit = int(self.value <= middle)
        self.low, self.high = (self.low, middle) if bit else (middle + 1, self.high)
        while self.low >> 24 == self.high >> 24:
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, (self.high << 8 & 0xFFFFFFFF) | 255
            self.value = (self.value << 8 & 0xFFFFFFFF) | self.data[self.position]
            self.position += 1
        return bit

    def mixed(self, contexts: list[int], sets: list[int], b: int) -> int:
        slots = [self.slots.setdefault(("mixed", b, i, c), Slot()) for i, c in enumerate(contexts)]
        weights = [self.weights.setdefault((i, b, s), [65536 * 3 // 20] * 10) for i, s in enumerate(sets)]
        inputs = [LOGITS[slot.p // 1024] for slot in slots]
        p = probability(sum((u + v) * x for u, v, x in zip(*weights, inputs, strict=True)) >> 16)
        p = min(65536 - 24, max(24, p))
        bit = self.bit(p)
        for i, (slot, x) in enumerate(zip(slots, inputs, strict=True)):
            for each in weights:
                each[i] = limited(each[i] + (x * 6 * (65536 * bit - p) + 2**17 >> 18), 2**20)
            slot.learn(bit)
        return bit

    def learned(self, *key: object) -> int:
        slot = self.slots.setdefault(key, Slot())
        bit = self.bit(slot.p // 64)
        slot.learn(bit)
        return bit

    def size(self, contexts: list[int], sets: list[int], unit: int) -> int:
        units = next((b for b in range(18) if self.mixed(contexts, sets, b)), 18)
        if units == 18:
            length = next((n for n in range(32) if self.learned("length", n)), 32)
            below = 0
            for _ in range(length):
                below = 2 * below + self.bit(32768)
            units += 2**length + below - 1
        low = 0
        for known in range(unit):
            key = ("unit", unit, known, low) if known < 2 else None
            low = 2 * low + (self.learned(*key) if key else self.bit(32768))
        return (units << unit) + low

    def chunk(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """int64 [planes, images, height, width]."""
        numbers = np.zeros(shape, np.int64)
        for v in range(shape[0]):
            for key, slot in self.slots.items():
                if v and key[0] == "mixed":
                    slot.seen = min(4, slot.seen)
            average = [0, 0, 0]
            for i in range(shape[1]):
                self.image(numbers, v, i, average)
        return numbers

    def image(self, numbers: NDArray[np.int64], v: int, i: int, average: list[int]) -> None:
        misses = np.zeros(numbers.shape[2:], np.int64)
        for y, x in np.ndindex(misses.shape):
            k = {(dy, dx): int(numbers[v, i, y + dy, x + dx]) for dy, dx in NEAR if self.inside(misses, y + dy, x + dx)}
            m = {(dy, dx): int(misses[y + dy, x + dx]) for dy, dx in k}
            left = k.get((0, -1), k.get((-1, 0), average[0] + 128 >> 8))
            above = k.get((-1, 0), left)
            corner = k.get((-1, -1), left)
            p = sorted((left, above, left + above - corner))[1]
            before = numbers[v - 1, i] if v else None
            slope = same = 0
            if before is not None:
                same = int(before[y, x])
                slope = same - (int(before[y, x - (x > 0)]) + int(before[y - (y > 0), x]) >> 1)
            earlier = int(numbers[v, i - 1, y, x]) - p if i else 0
            busy, edge = level(abs(left - above) + abs(above - corner)), (x == 0) + 2 * (y == 0)
            ml, ma, md = m.get((0, -1), 0), m.get((-1, 0), 0), m.get((-1, -1), 0)
            missed, four = level(ml + ma), level((ml + ma + md + m.get((-1, 1), ma)) // 2)
            pairs = [(left, above), (corner, k.get((-1, 1), above)), (k.get((0, -2), left), k.get((-2, 0), above))]
            two, three, five = (limited(a - p, 4) * 9 + limited(b - p, 4) for a, b in pairs)
            contexts = [edge * 6 + busy, two, three, limited(slope, 4) * 6 + busy, five, limited(p, 49)]
            contexts += [missed * 6 + four, limited(slope, 3) * 6 + four, limited(same, 4) * 9 + limited(p, 4)]
            contexts += [limited(earlier, 3) * 6 + missed]
            sets = [missed * 3 + (0, 1, 1, 2, 2, 2)[busy], limited(abs(slope), 2) * 4 + edge]
            unit = next(n for n in range(32) if n == 31 or average[1] >> n <= 80)
            size = self.size(contexts, sets, unit)
            negative = size > 0 and self.mixed(contexts, sets, 19)
            half = 2 ** (self.bits - 1)
            number = (p + (-size if negative else size) + half) % (2 * half) - half
            numbers[v, i, y, x], misses[y, x] = number, min(size, 255)
            average[2] = min(200, average[2] + 1)
            for which, now in enumerate((256 * number, 16 * size)):
                change = now - average[which]
                average[which] += abs(change) // average[2] * (1 if change > 0 else -1)

    @staticmethod
    def inside(plane: NDArray[np.int64], y: int, x: int) -> bool:
        return 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]


NEAR = [(0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0)]
