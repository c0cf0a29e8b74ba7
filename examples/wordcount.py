"""Word frequencies of many texts: the classic of map and reduce.

    p2pcompute submit examples/wordcount.py --map count --reduce merge texts/*.txt

`count` runs once a text, on whichever peer has room. `merge` gets a few neighbouring counts at a time and makes one of
them, again and again until one is left; so it must not matter in which groups they come (addition does not mind).

Nothing here knows of the network: `merge([count(text) for text in texts])` gives the same answer on one core.
"""

import re
from collections import Counter

WORD = re.compile(r"[a-z]+")


def count(data: bytes) -> Counter[str]:
    """How often each word stands in a text, in small letters; bytes that are no UTF-8 are passed over."""
    text = data.decode("utf-8", errors="ignore").lower()
    return Counter(WORD.findall(text))


def merge(counters: list[Counter[str]]) -> Counter[str]:
    """The sum of several counts."""
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


if __name__ == "__main__":
    import sys
    from pathlib import Path

    words = merge([count(Path(name).read_bytes()) for name in sys.argv[1:]])
    for word, times in words.most_common(20):
        print(f"{times:8} {word}")
