"""`com.microsoft::GatherBlockQuantized`: rows of an embedding, looked up in integer codes.

It reads the codes, scales and zero points of `MatMulNBits` as they are, with the codes of a row
in one piece: (rows, bytes) where the other wants (rows, blocks, bytes). Both may have them in
common, so that a tied head costs nothing in the file.

embedding.py  the module that stands in for it while the model is traced, and the factor that
              some architectures multiply embeddings with
operator.py   what it can hold
place.py      puts that module, and a head that is tied to it, into a model
views.py      lets a graph whose weights lie outside read the same bytes in both shapes
unpack.py     its tensors to the matrix; shares no code with the rest but the reader of codes
"""
