"""Methods that turn the Gramian of the task gradients into weights.

A weighting is a pair of pure functions (see `Weighting`), which `osgd_jax.aggregate` turns into an
optax transformation. To look up a method by its name, use `getattr(weightings, name)`.
"""

from osgd_jax.weightings._aligned_mtl import aligned_mtl
from osgd_jax.weightings._base import Weighting
from osgd_jax.weightings._cagrad import cagrad
from osgd_jax.weightings._config import config
from osgd_jax.weightings._dualproj import dualproj
from osgd_jax.weightings._dwa import dwa
from osgd_jax.weightings._fairgrad import fairgrad
from osgd_jax.weightings._famo import famo
from osgd_jax.weightings._gls import gls
from osgd_jax.weightings._gradient_equilibrium import gradient_equilibrium
from osgd_jax.weightings._gradnorm import gradnorm
from osgd_jax.weightings._gradvac import gradvac
from osgd_jax.weightings._imtl_g import imtl_g
from osgd_jax.weightings._inverse_norms import inverse_norms
from osgd_jax.weightings._linear import constant, mean, sum
from osgd_jax.weightings._mgda import mgda
from osgd_jax.weightings._modo import modo
from osgd_jax.weightings._nash_mtl import nash_mtl
from osgd_jax.weightings._orthogonal import orthogonal
from osgd_jax.weightings._pcd import pcd
from osgd_jax.weightings._pcgrad import pcgrad
from osgd_jax.weightings._random import random
from osgd_jax.weightings._relobralo import relobralo
from osgd_jax.weightings._sdmgrad import sdmgrad
from osgd_jax.weightings._smooth import smooth
from osgd_jax.weightings._softadapt import softadapt
from osgd_jax.weightings._stch import stch
from osgd_jax.weightings._uncertainty import uncertainty
from osgd_jax.weightings._upgrad import upgrad

__all__ = [
    "Weighting",
    "aligned_mtl",
    "cagrad",
    "config",
    "constant",
    "dualproj",
    "dwa",
    "fairgrad",
    "famo",
    "gls",
    "gradient_equilibrium",
    "gradnorm",
    "gradvac",
    "imtl_g",
    "inverse_norms",
    "mean",
    "mgda",
    "modo",
    "nash_mtl",
    "orthogonal",
    "pcd",
    "pcgrad",
    "random",
    "relobralo",
    "sdmgrad",
    "smooth",
    "softadapt",
    "stch",
    "sum",
    "uncertainty",
    "upgrad",
]
