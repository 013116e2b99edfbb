"""Counts the words of its standard input, the most frequent first."""

import collections
import sys

words = collections.Counter(sys.stdin.read().split())
for word, count in words.most_common(10):
    print(count, word)
sys.exit(0 if words else 1)
