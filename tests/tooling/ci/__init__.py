"""Tests of `./dev`, of the stages of CI, and of the plugins of pytest."""
