"""What the tests of real processes share: certificates, backends, and a running handfast."""
