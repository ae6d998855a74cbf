// Applies the chosen theme before the first paint. Without a choice, the system's preference decides.
{
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
