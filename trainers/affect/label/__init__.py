"""Labelling: rows in, one append-only log of decisions, the labelled set out.

| module | one responsibility |
|---|---|
| `log.py` | the append-only, fsynced decision log and its recovery after a kill |
| `items.py` | what is labelled, read from row files and pool files |
| `state.py` | the fold of a log: who said what about which row, undo and redo stacks |
| `scorer.py` | what a model says: a scores file, or TF-IDF and ridge regression |
| `queue.py` | which row comes next: expected value, quotas per cell, blind repeats |
| `session.py` | one rater at work; the terminal and the page both drive this |
| `terminal.py`, `web.py`, `page.*` | the two faces |
| `agreement.py` | Krippendorff's alpha and ICC per axis, with bootstrap intervals |
| `resolve.py` | two raters' labels to one row; the labelled set, byte for byte |
| `options.py`, `commands*.py` | `limbic label` |
| `form.py`, `guidelines.py` | the half-filled label; the page raters follow |
"""
