"""Distances and directions on the sphere; pure functions of float64 degrees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared.arrays import Float64

EARTH_RADIUS_M = 6_371_008.8
"""Mean Earth radius (IUGG R1), metres."""


def haversine_m(lat1: npt.ArrayLike, lng1: npt.ArrayLike, lat2: npt.ArrayLike, lng2: npt.ArrayLike) -> Float64:
    """Great-circle distance in metres, by the haversine formula; broadcasts."""
    phi1, phi2 = np.radians(lat1), np.radians(lat2)
    half_dphi, half_dlambda = (phi2 - phi1) / 2, (np.radians(lng2) - np.radians(lng1)) / 2
    a = np.sin(half_dphi) ** 2 + np.cos(phi1) * np.cos(phi2) * np.sin(half_dlambda) ** 2
    return np.asarray(2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(a)))


def bearing(lat1: Float64, lng1: Float64, lat2: Float64, lng2: Float64) -> Float64:
    """Planar direction from point 1 to point 2 in radians, in [0, 2 pi).

    Counted anticlockwise from east: atan2(dlat, cos(lat1) * dlng).
    """
    angle = np.arctan2(lat2 - lat1, np.cos(np.radians(lat1)) * (lng2 - lng1))
    return np.asarray(np.where(angle < 0, angle + 2 * np.pi, angle))


def turn(bearing1: Float64, bearing2: Float64) -> Float64:
    """Unsigned difference of two bearings, folded to [0, pi]."""
    difference = np.abs(bearing1 - bearing2)
    return np.asarray(np.where(difference > np.pi, 2 * np.pi - difference, difference))
