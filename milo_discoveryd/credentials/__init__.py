"""The credentials in issued kubeconfigs: their issuers, and their validation.

No error or log message of this package contains a secret.
"""
