using Kmem.Benchmarks;

return args is ["replay", .. string[] rest] ? ReplayBenchmarks.Look(rest) : 0;
