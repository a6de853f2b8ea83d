// The chosen theme, before anything is painted.
try {
  const theme = localStorage.getItem("nextword-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* storage is forbidden: the system's theme stays */ }
