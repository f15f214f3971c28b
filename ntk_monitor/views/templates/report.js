const data = JSON.parse(document.getElementById('data').textContent);
const text = document.getElementById('static');
text.open = false;
window.addEventListener('beforeprint', () => { text.open = true; });
modules['dashboard.js'].createDashboard(document.getElementById('dashboard'), {
  live: false,
  runs: async () => data.runs,
  series: async (runs, state) => ({
    notes: data.series[state].notes,
    runs: Object.fromEntries(runs.map((run) => [run, data.series[state].runs[run]])),
  }),
  snapshots: async (run, state) => data.snapshots[state][run],
});
