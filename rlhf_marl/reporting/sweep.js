// Charts of a sweep: a speaker's mean reward per arm, with its interval over seeds as a band. After charts.js.

const charts = Object.fromEntries(Object.entries(data.curves).map(([speaker, arms]) => [speaker, () => [
  arms.flatMap((arm, i) => {
    const common = { x: arm.update, legendgroup: arm.arm, name: label(arm.arm) };
    const edge = { ...common, mode: "lines", line: { width: 0 }, showlegend: false, hoverinfo: "skip" };
    const known = arm.low.some((value) => value !== null);
    return [
      ...(known ? [{ ...edge, y: arm.low },
        { ...edge, y: arm.high, fill: "tonexty", fillcolor: `${colour(i)}2e` }] : []),
      { ...common, y: arm.mean, mode: "lines", line: { color: colour(i), width: 2.5 }, hovertemplate: "%{y:.2f}" },
    ];
  }),
  { xaxis: { title: { text: "update" } }, yaxis: { title: { text: "reward (scaled)" } } },
]]));
