"""What handfast costs against other TLS terminators, measured on this machine in one run."""
