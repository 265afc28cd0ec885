"""The report: a folder with pages that open without a network, made of what the workspace holds.

Nothing in it names a patient, a file or a place: scans by their case ids, artifacts by kind, version and digest.
"""
