r"""Operations in which a weight multiplies activity, and what that activity is.

Every one of them is brought to one form. With groups ``g`` (1 for most), output rows ``r``, and
units ``q``,

.. math:: Q_{g, r, q} = \sum_m V_{g, r, m} W_{g, q, m}.

A dense product is a contraction of indices, and its ``V`` is the contraction without the weight; a
convolution multiplies patches, an embedding one-hot vectors.
"""
