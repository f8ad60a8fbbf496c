"""Commands for services: servers, schedules, pages, storage."""
