"""Tests of manifests, rules, dashboards, images, packages and workflows."""
