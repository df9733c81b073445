# SPDX-License-Identifier: Apache-2.0
"""Load tests: locust users that sign like KMS, rate-controlled profiles, an SLO verdict and a report. README.md is the manual."""
