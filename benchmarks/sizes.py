"""What every model that is timed has: so many tokens in its vocabulary, and in a sequence."""

VOCAB, CONTEXT = 32000, 4096
