"""The credentials in issued kubeconfigs: where they come from (`issuers`), and what is valid.

No error or log message of this package contains a secret.
"""
