"""Dialects: what one API says, said in another.

PURE and sans-I/O: documents and bytes in, documents and bytes out. A translation never does less than it was asked
for without a word: what cannot be said in the other dialect is refused by name, or named as left out.
"""
