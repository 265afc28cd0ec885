"""Contrastive losses: each embedding close to its partner and away from the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts.together import gathered


def contrastive_loss(anchor: Tensor, positive: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Draws every anchor to its positive and away from the other anchors.

        mean_i -log [exp(sim(u_i, a_i) / tau) / sum_{j != i} exp(sim(u_i, u_j) / tau)],  sim: cosine

    Args:
        anchor: u, embeddings of the scans of the batch, (N, K), N >= 2.
        positive: a, embeddings of the atlases that go with them, (N, K).
        temperature: tau.

    Returns:
        Scalar from -2 / tau + log(N - 1), with positives equal and others opposite, to 2 / tau + log(N - 1).

    Source: OS-MedSeg Eq. 2. As there, the sum leaves the positive out.
    """
    anchor, positive = (F.normalize(gathered(embeddings.float()), dim=1) for embeddings in (anchor, positive))
    itself = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    others = (anchor @ anchor.T / temperature).masked_fill(itself, -torch.inf)
    return (others.logsumexp(1) - (anchor * positive).sum(1) / temperature).mean()


def info_nce_loss(query: Tensor, key: Tensor, negatives: Tensor, own: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of telling each query's key from the negatives.

        mean over queries of -log [exp(q k+ / tau) / (exp(q k+ / tau) + sum_i exp(q k_i / tau))]

    Args:
        query, key: unit vectors, (N, K).
        negatives: unit vectors, (M, K).
        own: (N, M), true where a negative is left out for that query, because it shows the same scan.

    Returns:
        Scalar >= 0; 0 where no negative is left.

    Source: He et al., "MoCo", CVPR 2020, Eq. 1; SST Eq. 1.
    """
    met = (query.float() * key.float()).sum(1, keepdim=True)
    others = (query.float() @ negatives.float().T).masked_fill(own, -torch.inf)
    first = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return F.cross_entropy(torch.cat([met, others], 1) / temperature, first)


def nt_xent_loss(first: Tensor, second: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Cross-entropy of finding every row's partner among all other rows of both (2N rows, both ways), by cosine.

    Args:
        first, second: embeddings of partners, (N, K), N >= 2.

    Source: Chen et al., SimCLR (ICML 2020), Eq. 1; the published code of CLMorph and OS-MedSeg.
    """
    first, second = gathered(first), gathered(second)
    rows = F.normalize(torch.cat([first, second]).float(), dim=1)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    partners = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy((rows @ rows.T / temperature).masked_fill(itself, -torch.inf), partners)
