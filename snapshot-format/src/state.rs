//! (to be written: header, section table, reader, writer)
