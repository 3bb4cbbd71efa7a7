"""Converters of other packages on our networks, called as their own documentation calls them."""

from __future__ import annotations

from .converters import PEERS, Peer, calls
from .network import PeerNetwork, PeerRun, available, peer_network
from .plain_form import plain

__all__ = [
    "PEERS",
    "Peer",
    "PeerNetwork",
    "PeerRun",
    "available",
    "calls",
    "peer_network",
    "plain",
]
