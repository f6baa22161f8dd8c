"""The tables of the papers, run. Data flows one way: table -> plan -> runs -> figures -> result -> files; each module says which part it is."""
