// Replaced in an exported folder by the list of its places; `null` means that the server has the data.
window.EXPORTED = null;
