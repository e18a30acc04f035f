"""What real API servers answered, recorded once; the sandbox is held to it.

A conversation is a function that asks; a transcript is what was asked and answered, told so that two servers which
behave alike have the same one. `./dev real record` renews the transcripts of the real servers.
"""
