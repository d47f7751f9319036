//! Pure decisions: tables, match, balance, DNS answers.
