"""How steps are computed: eager, fused, compiled, captured, by minibatches."""
