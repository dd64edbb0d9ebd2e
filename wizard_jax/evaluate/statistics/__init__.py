"""What may be said of an evaluation, and how surely: pure functions of arrays, each with a 95 % interval and its n.

A figure is a `bootstrap.Estimate` (value, low, high, n, method), resampled by prompt as a `bootstrap.Bootstrap` says.
`bootstrap.NoEstimate` says why these data do not determine a figure, in a sentence that can stand in its place; other
ValueErrors are rows that do not fit together, and NaN.

    is A better than B?                                 wins.win_rate           of wins.item_scores
    is A better than C, both judged against B?          wins.paired_difference
    in which skills and bands?                          multiple.by_group       of multiple.pooled skills
    what could so many prompts show at all?             multiple.detectable_effect, multiple.half_width
    how do three or more models stand?                  models.bradley_terry
    is it only that its answers are longer?             models.length_controlled
    what percent of the baseline do graded scores reach?  capacity.capacity
    do two judges, orders or people agree?              agreement.agreement
    does a judge go by order or by length?              bias.order_consistency, bias.longer_preferred
    is a judge right more often than length is?         wins.paired_difference  of bias.concordance and always_longest
    do two measures of difficulty rank alike?           rank.spearman, also within skills and without length
    does an effect hold for new seeds and new items?    sweeps.hierarchical
    does it rise with depth?                            sweeps.page_trend
    which of many p-values count?                       multiple.holm
    how often is an answer right?                       shares.wilson, and shares.difference of two models
"""
