using BenchmarkDotNet.Columns;
using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Running;
using Kmem.Benchmarks;

if (args is ["replay", .. string[] rest])
    return ReplayBenchmarks.Look(rest);

// Ratios within a category of one run are what counts; see README.md beside this file.
IConfig config = DefaultConfig.Instance
    .AddJob(Job.Default.WithWarmupCount(5).WithIterationCount(12).AsDefault())
    .AddLogicalGroupRules(BenchmarkLogicalGroupRule.ByCategory)
    .AddColumn(CategoriesColumn.Default)
    .HideColumns(Column.Error, Column.StdDev, Column.RatioSD);
BenchmarkSwitcher.FromAssembly(typeof(ReplayBenchmarks).Assembly).Run(args, config);
return 0;
