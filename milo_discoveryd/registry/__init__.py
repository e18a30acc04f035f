"""The registry: known and engaged clusters, one commit point, one change log, a cursor per reader."""
