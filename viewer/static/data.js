// What an exported folder holds; the server has it all, so here there is nothing.
window.EXPORTED = null;
