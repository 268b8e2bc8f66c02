"""Row groups of new stores: committed, sent to workers, read back where it must be; recode, which needs no model."""
